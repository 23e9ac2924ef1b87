"""What is on the stream: envelope, a model per subject, topics. Imports nobody of ours."""
