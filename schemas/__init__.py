"""What is on the stream: the envelope, one model per subject, the topics. Imports nobody of ours."""
