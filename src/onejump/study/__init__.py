"""What a study is: its variants, their fits, and where its files lie."""
