"""What one training needs, whatever the strategy: data, models, the loop, records, evaluation."""
