"""Images to predictions, and what training needs of them."""
