"""Speed, beside the alternative and the limit."""
