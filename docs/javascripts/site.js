// what the theme leaves out: tables and code that scroll can be reached by keyboard, and the search dialog has a name
document$.subscribe(() => {
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach((e) => { e.tabIndex = 0; });
  const search = document.querySelector(".md-search");
  if (search) search.setAttribute("aria-label", "Search");
});
