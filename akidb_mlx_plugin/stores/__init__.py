"""What the databases share: documents, fingerprints and dimensions, stored settings, upserts, re-embedding."""
