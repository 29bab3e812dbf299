"""The ladder: MetaOptimize runs and schedules over lr at many widths and token counts, as pilots of a plan."""
