"""The main job: from a target and a budget to a recipe on text-lm, beside grid and TPE at the same compute."""
