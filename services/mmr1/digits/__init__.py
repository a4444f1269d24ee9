"""Problems made from scikit-learn's handwritten digits: real scans, composed on a canvas of their own."""
