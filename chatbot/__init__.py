"""What Night School asks: several replies to a turn, and the ranking of them."""
