"""Commands that prepare data, train and export."""
