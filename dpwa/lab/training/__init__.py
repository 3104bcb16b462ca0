"""What one training needs: data, models, records, evaluation."""
