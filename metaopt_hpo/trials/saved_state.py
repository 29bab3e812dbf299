"""State in a file of JSON, for frameworks whose searchers and schedulers save and restore themselves."""

from __future__ import annotations

import json
from typing import Any

from metaopt_hpo.atomic import write_text
from metaopt_hpo.trials.logbook_file import read_state


class SavedAsJson:
    """Saves what `whole_state` gives, and restores it by `set_state`."""

    def get_state(self) -> dict[str, Any]:
        """Plain data."""
        raise NotImplementedError

    def set_state(self, state: dict[str, Any]) -> None:
        """Become what `get_state` described."""
        raise NotImplementedError

    def whole_state(self) -> dict[str, Any]:
        """The state where nothing else is kept beside it."""
        return self.get_state()

    def save(self, checkpoint_path: str) -> None:
        """Write the state, trials included, as JSON."""
        write_text(checkpoint_path, json.dumps(self.whole_state()))

    def restore(self, checkpoint_path: str) -> None:
        """Read what `save` wrote.

        Raises:
            LogbookError: not a file of ours, or a damaged one.
        """
        read_state(checkpoint_path, type(self).__name__, self.set_state)
