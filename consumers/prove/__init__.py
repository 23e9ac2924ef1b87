"""`dialstream prove`: the promise of durability and order, as an experiment."""
