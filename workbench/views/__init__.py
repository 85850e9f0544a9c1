"""Pictures: from labelled data to what is drawn. A view sees a dataset, never a model."""
