"""Services for programs that know nothing of Authority: see `base`."""
