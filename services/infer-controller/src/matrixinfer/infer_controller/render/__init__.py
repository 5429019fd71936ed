"""Pure constructors of the objects that this controller makes."""
