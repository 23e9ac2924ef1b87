"""Reading back what providers keep of their own: calls, and what the setting ``also`` names."""
