"""What a delivery costs, beside a server that does nothing. See README.md."""
