"""QK-norm and rotary position embedding in one pass over query and key; the norm of a head is a NormSpec."""
