"""What the engines share: an attempt on its way to a worker, there, and back."""
