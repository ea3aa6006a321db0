"""Here only because the documented interface has a module of this name; nothing of gemlens lives here."""
