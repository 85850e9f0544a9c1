"""What a person touches: the player, the form, the pages and the broker behind them."""
