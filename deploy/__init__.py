"""How the service is run on many machines."""
