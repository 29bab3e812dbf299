"""From a target and a budget to the small runs worth making, and from those to a recipe.

`metaopt_hpo.plan` is this room and the function that makes a plan: `from metaopt_hpo import plan; plan(target=7e9, …)`.
"""
