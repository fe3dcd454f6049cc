"""The verdict of a GPU: everything that a quarter of an hour of a card can tell, in steps, most worth first."""
