"""The true mask as a drawing: visualizer.py asks a model, drawing.py holds the answer, the others put it on paper."""
