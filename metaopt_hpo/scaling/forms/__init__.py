"""What a law is made of: quadratic in ln lr and ln batch, loss floor, edge of stability; one form a file."""
