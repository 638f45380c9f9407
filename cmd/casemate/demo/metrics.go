package demo

import (
	"cmp"
	"slices"
)

// scores are what predictions are worth.
type scores struct {
	count    int
	accuracy float64 // at a threshold of one half
	auc      float64 // area under the ROC curve
}

// prediction is a probability beside the truth.
type prediction struct {
	probability float64
	positive    bool
}

// evaluate computes accuracy and AUC. AUC is the Mann-Whitney statistic: the chance that a positive gets a higher probability than a negative,
// ties counting half; ranks of equal values are averaged.
func evaluate(all []prediction) scores {
	s := scores{count: len(all)}
	if len(all) == 0 {
		return s
	}
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b prediction) int { return cmp.Compare(a.probability, b.probability) })
	right, positives, ranks := 0, 0, 0.0
	for i := 0; i < len(sorted); {
		j := i
		for j < len(sorted) && sorted[j].probability == sorted[i].probability {
			j++
		}
		rank := float64(i+1+j) / 2 // the mean of i+1 … j
		for _, p := range sorted[i:j] {
			if p.positive {
				positives++
				ranks += rank
			}
			if p.positive == (p.probability > 0.5) {
				right++
			}
		}
		i = j
	}
	s.accuracy = float64(right) / float64(len(all))
	if negatives := len(all) - positives; positives > 0 && negatives > 0 {
		s.auc = (ranks - float64(positives)*float64(positives+1)/2) / (float64(positives) * float64(negatives))
	}
	return s
}
