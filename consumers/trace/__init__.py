"""`dialstream trace`: the life of one call, from hop to hop."""
