"""Pure constructors of everything that is made from a Model: one module for each kind of object."""
