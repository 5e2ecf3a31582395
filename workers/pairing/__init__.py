"""How the two sides find each other and agree before any memory moves."""
