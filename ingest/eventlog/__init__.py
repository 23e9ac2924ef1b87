"""Where events go, and where they are read from."""
