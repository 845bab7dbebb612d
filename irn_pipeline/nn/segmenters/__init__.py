"""Models trained on the synthesized labels, behind one interface."""
