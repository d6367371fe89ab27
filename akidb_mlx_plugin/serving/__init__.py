"""One model for many processes: an HTTP server in OpenAI's form in front of the embedding service."""
