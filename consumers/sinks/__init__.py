"""What we tell other systems of what is on the stream."""
