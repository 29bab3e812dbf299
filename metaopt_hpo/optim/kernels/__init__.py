"""The Hessian-free step, fast: several implementations of one algorithm, and the choice among them."""
