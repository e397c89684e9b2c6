"""Compare fc-head and conv-head as the paper's section 3."""

from dh_keras.commands.analyze_heads import main

if __name__ == "__main__":
    main()
