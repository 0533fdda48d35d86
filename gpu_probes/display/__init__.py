"""Numbers, places and cell tables as people read them."""
