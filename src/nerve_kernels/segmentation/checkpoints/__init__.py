"""What a checkpoint holds, judged before and after it is loaded; where it comes from."""
