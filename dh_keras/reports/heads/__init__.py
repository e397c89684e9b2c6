"""What each head is good at, measured as in the paper's section 3."""
