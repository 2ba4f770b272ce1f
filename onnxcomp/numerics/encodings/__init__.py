"""How arrays are stored: codes, expressions that decode them, packing, the choice among them."""
