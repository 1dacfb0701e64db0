"""How the embedded models and the shipped scenes were made, from nothing: `python -m training`."""
