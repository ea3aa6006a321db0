"""Sample: logits -> next ids, in the only loop. Generation knows no text."""
