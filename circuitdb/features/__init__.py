"""Feature circuits: what features and error nodes do, alone and together."""
