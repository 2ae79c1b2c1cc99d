"""Label formats: where the labels of an image lie, and what each format says."""
