"""From a trunk and a head to text."""
