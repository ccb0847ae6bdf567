"""What images, text states and heads share: addressed randomness and the shape of an objective."""
