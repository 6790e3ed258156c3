"""The Textual app: starts verbs in processes of their own and draws their records. It holds no logic."""
