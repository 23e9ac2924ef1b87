"""How deliveries reach us, and what an error means there."""
