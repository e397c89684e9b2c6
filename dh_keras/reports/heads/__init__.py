"""What each head is good at, measured as in section 3 of the paper."""
