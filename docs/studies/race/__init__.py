"""A live race: a plan against TPE, GP, ASHA and grid at equal compute, on a target thirty times its largest pilot."""
