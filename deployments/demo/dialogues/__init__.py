"""Made-up conversations whose outcome shows only when they are read to the end."""
